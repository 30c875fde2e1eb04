"""Requests to an assistant: attacks in eight categories, near misses that share their words, and what an assistant said to them.

goals.py    what is asked for, and how it is put
env.py      the environment `burnish/GuardedRequests-v0`
corpus.py   conversations of an assistant that errs both ways, as SFT data
"""
