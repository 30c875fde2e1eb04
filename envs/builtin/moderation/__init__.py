"""`burnish/ContentModeration-v0`: decide what becomes of a post by an organisation's policy, and name the rule that says so.

policies.py    rules, what they ask for, policies drawn from a grammar, and which of them are held out
cases.py       posts, their authors, and the case of a seed
wording.py     every sentence the policy reads or writes
moderators.py  a scripted expert, and the moderators of the past, who slip and overlook conditions
corpus.py      text for continued pre-training, moderation history for supervised fine-tuning
env.py         the Gymnasium environment
"""
