"""Ways to wire the deployments; nothing but wiring."""
