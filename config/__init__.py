"""Settings of the service: typed, frozen, from defaults, a YAML file and the environment."""
