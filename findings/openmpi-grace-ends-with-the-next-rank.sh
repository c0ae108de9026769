#!/usr/bin/env bash
# Open MPI 4.1.4, mpirun: the second that the other ranks have when one has died is over as soon as another one ends.
#
# When a rank is killed, mpirun sends SIGCONT to the others, SIGTERM a second later (odls_base_sigkill_timeout), and SIGKILL
# another second later. It sleeps in between, and the SIGCHLD of the next rank that ends wakes it: SIGTERM then follows at
# once. So if all ranks notice the death, say so, and end, the first of them that ends has most others killed in mid-sentence:
# they have to wait for each other before they end, or to catch SIGTERM.
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
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static double start;

static void on_sigterm(int signal) {
    (void)signal;
    double after = MPI_Wtime() - start;
    const char *text = after < 0.7 ? "SIGTERM when the next rank ended\n" : "SIGTERM after a second\n";
    fputs(text, stdout);
    fflush(stdout);
    _exit(0);
}

int main(int argc, char **argv) {
    int rank;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Barrier(MPI_COMM_WORLD);
    start = MPI_Wtime();
    if (rank == 0) signal(SIGTERM, on_sigterm);
    if (rank == 1) kill(getpid(), SIGKILL);
    while (MPI_Wtime() - start < 5) {
        usleep(1000);
        if (rank == 2 && argc > 1 && MPI_Wtime() - start > 0.3) _exit(3);
    }
    return 0;
}
C
mpicc -o "$folder/finding" "$folder/finding.c"
run() { mpirun --allow-run-as-root --oversubscribe -n 3 "$folder/finding" "$@" 2> /dev/null || true; }
found=$(run; run next)
printf '%s\n' "$found"
expected='SIGTERM after a second
SIGTERM when the next rank ended'
if [ "$found" != "$expected" ]; then
    echo "changed: Open MPI 4.1.4 printed" "$expected" "when this was written" >&2
    exit 1
fi
