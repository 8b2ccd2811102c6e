"""What those need who write a storage or a source of their own: what it must do, as tests."""
