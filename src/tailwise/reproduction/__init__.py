"""The numbers that papers print: what gives ours, what is left to train, what stands beside them."""
