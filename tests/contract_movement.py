from contract_world import Cases

CASES = Cases()
