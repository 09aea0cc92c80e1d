"""The collector's outputs, one file each; file name = config key = metric label = logger name."""
