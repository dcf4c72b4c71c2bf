"""`earlier`: runs, and code, of earlier versions find the modules that were moved since. A project without any can do without."""
