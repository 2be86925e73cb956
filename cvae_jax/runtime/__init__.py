"""Runtime: devices, hosts, signals, files and the cache of compiled programs."""
