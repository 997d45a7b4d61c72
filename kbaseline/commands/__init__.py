"""What one does with a finished run or a source: evaluate, compare, predict, inspect, check the machine."""
