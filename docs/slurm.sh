#!/bin/bash
# The study on a cluster with SLURM. From the project's folder, after `make study PROFILE=smoke` once on the login node:
#   sbatch docs/slurm.sh
# Two minutes before its time limit SLURM sends SIGUSR1: the training under way saves its state after the step, and the job
# ends. Submitted again, it goes on from there; preemption (SIGTERM) is answered alike.
#SBATCH --job-name=oasis
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --output=oasis-%j.log

cd "$SLURM_SUBMIT_DIR" || exit 1

.venv/bin/python -m oasis_lib check
# exec: the signal reaches the study itself, not a shell that waits for it
exec .venv/bin/python -m oasis_lib study --profile "${PROFILE:-full}" --cohort "${COHORT:-phantom}" --run "runs/$SLURM_JOB_NAME"

# One model on several GPUs (ask for --gpus=4 above):
#   .venv/bin/torchrun --standalone --nproc-per-node 4 -m oasis_lib train vqvae --cohort data/mine --out runs/mine/vqvae --minutes 10
