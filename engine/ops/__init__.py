"""Operations that have several implementations: attention, and later the kernels."""
