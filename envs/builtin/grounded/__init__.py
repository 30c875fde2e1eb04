"""Questions about a shop floor's order sheets: some can be answered from the sheet, some cannot.

sheets.py   sheets, what is asked about them, and how both read
env.py      the environment `burnish/GroundedAnswers-v0`
corpus.py   how a sheet is read, and the answers of clerks who always have one, as conversations to learn from
"""
