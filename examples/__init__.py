"""Programs to serve, and jobs that call them."""
