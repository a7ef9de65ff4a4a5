"""Where promises are kept: the store behind the core's ``Store`` port."""
