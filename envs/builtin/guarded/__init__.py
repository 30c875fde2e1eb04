"""Requests to an assistant: attacks in eight categories, near misses that share their words, and the refusals that one would train on.

goals.py    what is asked for, and how it is put
env.py      the environment `burnish/GuardedRequests-v0`
corpus.py   conversations in which attacks are refused, as SFT data
"""
