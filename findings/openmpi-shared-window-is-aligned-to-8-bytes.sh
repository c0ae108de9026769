#!/usr/bin/env bash
# Open MPI 4.1.4: memory of MPI_Win_allocate_shared begins 8 bytes behind the start of a cache line, on every rank.
#
# A window of shared memory suggests pages, or at least cache lines: what each rank writes would then lie in lines of its own,
# and types that want 64 bytes (vectors of AVX-512, padded counters) could be put at its start. Each rank's memory is aligned to 8
# bytes only, also where ranks ask for whole pages, and for memory of their own (alloc_shared_noncontig). The key of MPI 4.0 that
# asks for more, mpi_minimum_memory_alignment, is passed over in silence. A program has to ask for 64 bytes more and round up.
#
# Needs an MPI with mpicc and mpirun (Debian: libopenmpi-dev openmpi-bin). Exits with 1 when the behaviour has changed.
set -euo pipefail
version=$(mpirun --version | head -n 1)
if [ "$version" != "mpirun (Open MPI) 4.1.4" ]; then
    echo "this was seen with Open MPI 4.1.4 (Debian 12: libopenmpi-dev and openmpi-bin 4.1.4-3+b1); here is $version" >&2
    exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/finding.c" <<'C'
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>

static int behind_a_line(int bytes, MPI_Info info) {
    void *memory;
    MPI_Win window;
    MPI_Win_allocate_shared(bytes, 1, info, MPI_COMM_WORLD, &memory, &window);
    int behind = (int)((uintptr_t)memory % 64);
    MPI_Win_free(&window);
    return behind;
}

int main(int argc, char **argv) {
    int rank;
    MPI_Info info;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Info_create(&info);
    MPI_Info_set(info, "alloc_shared_noncontig", "true");
    MPI_Info_set(info, "mpi_minimum_memory_alignment", "64");
    int plain = behind_a_line(4096, MPI_INFO_NULL), asked = behind_a_line(4096, info);
    printf("rank %d: %d bytes behind a cache line; asked for 64, %d\n", rank, plain, asked);
    MPI_Info_free(&info);
    MPI_Finalize();
    return 0;
}
C
mpicc -o "$folder/finding" "$folder/finding.c"
found=$(mpirun --allow-run-as-root --oversubscribe -n 2 "$folder/finding" | sort)
printf '%s\n' "$found"
expected='rank 0: 8 bytes behind a cache line; asked for 64, 8
rank 1: 8 bytes behind a cache line; asked for 64, 8'
if [ "$found" != "$expected" ]; then
    echo "changed: Open MPI 4.1.4 printed" "$expected" "when this was written" >&2
    exit 1
fi
