"""`burnish/QualityInspection-v0`: inspect a manufactured part with tools and dispose of it.

parts.py       what a part is, how one is generated, which verdict is right
wording.py     every sentence the policy reads or writes
inspectors.py  a scripted expert, and a historical inspector who errs and over-measures
corpus.py      text for continued pre-training, logs for supervised fine-tuning
shop_floor.py  the SQLite database of parts and measurements
service.py     the gRPC tool service (measure, spec) over it
env.py         the Gymnasium environment
"""
