#!/usr/bin/env bash
# Open MPI 4.1.4, ob1: the first probe after a pause does not find a message that has long come; the second one does.
#
# MPI_Improbe looks among the messages that the process has taken in, and takes in what has come afterwards. A program that
# sleeps, probes once, and sleeps again therefore finds every message one sleep too late. It has to probe twice.
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
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int rank, flag, value = 5;
    MPI_Message message;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) {
        usleep(200000);
        MPI_Send(&value, 1, MPI_INT, 1, 0, MPI_COMM_WORLD);
    }
    if (rank == 1) {
        usleep(500000);
        for (int probe = 1; probe <= 2; probe++) {
            MPI_Improbe(0, 0, MPI_COMM_WORLD, &flag, &message, MPI_STATUS_IGNORE);
            printf("probe %d %s\n", probe, flag ? "finds the message" : "finds nothing");
        }
        if (message != MPI_MESSAGE_NULL) MPI_Mrecv(&value, 1, MPI_INT, &message, MPI_STATUS_IGNORE);
    }
    MPI_Finalize();
    return 0;
}
C
mpicc -o "$folder/finding" "$folder/finding.c"
found=$(mpirun --allow-run-as-root --oversubscribe --mca pml ob1 -n 2 "$folder/finding")
printf '%s\n' "$found"
expected='probe 1 finds nothing
probe 2 finds the message'
if [ "$found" != "$expected" ]; then
    echo "changed: Open MPI 4.1.4 printed" "$expected" "when this was written" >&2
    exit 1
fi
