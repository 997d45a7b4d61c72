"""The work behind the commands, callable from Python: evaluate, compare, predict, inspect, check the machine."""
