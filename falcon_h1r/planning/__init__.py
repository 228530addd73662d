"""What a run needs before it is launched: memory by part, time, cost, and the cheapest layout that fits."""
