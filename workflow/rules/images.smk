# container.def and a lock -> the image that runs happen in. It is built again when one of them changed, not when one was
# touched, nor for anything else: Octavo's own code comes from the checkout.


rule image:
    input:
        ancient("container.def"),
        ancient(octavo.image_lock),
    output:
        "results/images/{variant}.sif",
        "results/images/{variant}.json",
    log:
        "results/images/{variant}.log",
    threads: octavo.cpu_job_threads(config) or 1
    resources:
        **octavo.cpu_job(config),
    params:
        digest=octavo.image_digest,
    shell:
        "octavo image {wildcards.variant} > {log} 2>&1"


# the same file system as pyxis starts it
rule squashfs:
    input:
        ancient("container.def"),
        ancient(octavo.image_lock),
    output:
        "results/images/{variant}.sqsh",
        "results/images/{variant}.sqsh.json",
    log:
        "results/images/{variant}.sqsh.log",
    threads: octavo.cpu_job_threads(config) or 1
    resources:
        **octavo.cpu_job(config),
    params:
        digest=octavo.image_digest,
    shell:
        "octavo image {wildcards.variant} --squashfs > {log} 2>&1"
