// Compiled with the flags of this instruction set.
#define FD_ISA avx2
#include "kernel_table.h"
