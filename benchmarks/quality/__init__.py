"""Quality: the distance of pictures against their milliseconds (`run`), and what a lower precision costs (`precisions`)."""
