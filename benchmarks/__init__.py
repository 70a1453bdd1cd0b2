"""How fast is it, and how good are the pictures? Two scripts, `latency.py` and `quality.py`, and what they share."""
