"""The control plane: orchestration, sagas and approvals. It reaches other systems only through the data plane."""
