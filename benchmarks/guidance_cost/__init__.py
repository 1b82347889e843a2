"""What guided decoding costs: time, memory and Python's share of a step, against plain decoding without Otter."""
