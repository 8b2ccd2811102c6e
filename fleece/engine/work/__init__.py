"""What several verbs work with: the pool, plans of reads, scans, new files."""
