"""Help for vector stores: which model filled them, sparse vectors beside them, and fusion of several rankings."""
