// Compiled with the flags of this instruction set.
#define FD_ISA avx512
#include "kernel_table.h"
