"""Operations with several implementations, such as attention; devices, number formats, noise levels."""
