"""The operator's page: server-rendered views on the control plane, from files of the package alone."""
