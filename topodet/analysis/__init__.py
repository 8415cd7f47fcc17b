"""Looking at networks: the report of a wiring, and what becomes of a network as its edges go."""
