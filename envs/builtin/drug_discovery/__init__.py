"""`burnish/DrugDiscovery-v0`: exchange one group of a molecule so that its properties meet a goal, and answer with its SMILES.

fragments.py   rings, linkers and groups that molecules are made of, and what each counts in a property
molecules.py   molecules drawn from them, written as SMILES, and which of them are held out
goals.py       what is asked of a property
cases.py       the case of a seed: a molecule, its goals, and the exchanges that meet them
wording.py     every sentence the policy reads or writes
chemists.py    a scripted expert, and the chemists of the past, who guess and overlook goals
corpus.py      literature for continued pre-training, lab notebooks for supervised fine-tuning
env.py         the Gymnasium environment

None of this needs RDKit: the properties of these molecules are sums. What a policy answers is any SMILES, and is judged by RDKit
(`burnish.rewards.builtin.drug_discovery`).
"""
