"""What this package knows of vector stores: who filled them, sparse vectors beside them, rankings from several."""
