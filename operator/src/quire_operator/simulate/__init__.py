"""Loads, a model of engines, and policies beside each other, in simulated time: the autoscaler is the real function.

Belongs here: what is needed to see what a policy does to a load. Does not belong here: anything that runs in earnest.
"""
