"""Settings fitted to a bundle: the distance that judges one, and the search for a better one."""
