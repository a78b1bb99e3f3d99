"""What a recipe becomes on a cluster: memory, layouts and the plan. Pure."""
