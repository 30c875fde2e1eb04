"""`burnish/FunctionCalls-v0`: call the functions that a question needs, with the values that it gives, or none where none fits.

matching.py    whether calls are those that were wanted, in the form that bfcl-eval's answers have
functions.py   the functions that questions are made about, and their wording
cases.py       the case of a seed
env.py         the Gymnasium environment
"""
