"""SLURM: cluster profiles, submission, sweeps, what runs inside a job, and looking at jobs.

What a job leaves in its run folder:

    slurm/jobs.jsonl         one line per job: id, time, verb, arguments, profile (resolved), code, place of the logs
    slurm/code/HASH/         the package as it was at submission; a queued job runs this, whatever is edited meanwhile
    slurm/configs/TIME.yaml  the resolved configuration that the job reads
    slurm/logs/TIME/         JOB_TASK_log.out and .err of every task, as submitit names them; a folder for each
                             submission, because a cluster that is set up anew counts jobs from 1 again
    slurm/ends/              how each start of a job has ended, for the next one; see jepa.slurm.ends
    slurm/failures/          JOB.RESTART-rankR.txt of every rank that failed or hung; the earliest is the cause
    restarts.jsonl           one line per start of the run: attempt, time, reason, step resumed from, steps lost, nodes
"""
