"""Runtime: devices, hosts, signals and files."""
