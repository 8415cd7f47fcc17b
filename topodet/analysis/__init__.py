"""Looking at trained networks: pictures of their wiring."""
