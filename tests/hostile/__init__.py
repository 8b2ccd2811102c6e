"""What somebody else may have made, changed or taken: none of it is trusted."""
