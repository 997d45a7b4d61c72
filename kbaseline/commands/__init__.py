"""Commands on finished runs and data sources: evaluate, compare, predict, inspect, check the machine."""
