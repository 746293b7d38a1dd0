/* What pyxis does for `srun --container-image`, as far as tests need it: a SPANK plugin with the same options.
 *
 * A task gets a mount namespace of its own, in which the squashfs file is its root, beneath a layer in memory that
 * holds the mount points; then what enroot mounts by itself (/proc, /sys, /dev, /etc/hosts), the mounts asked for, and
 * the home unless it is not wanted. Unlike pyxis it needs root, starts no hooks, and has no user namespace. Options are
 * those of `srun --help` with pyxis (github.com/NVIDIA/pyxis), functions those of slurm/spank.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

SPANK_PLUGIN(pyxis_stand_in, 1)

#define ROOT "/mnt" /* of the task's namespace alone */

static char *image, *mounts, *workdir;
static int home = 1, writable = 1;

static int keep(char **kept, const char *given)
{
    free(*kept);
    *kept = strdup(given);
    return *kept == NULL ? ESPANK_NOSPACE : ESPANK_SUCCESS;
}

static int take(int option, const char *given, int remote)
{
    (void)remote;
    switch (option) {
    case 'i': return keep(&image, given);
    case 'm': return keep(&mounts, given);
    case 'w': return keep(&workdir, given);
    case 'h': home = 0; break;
    case 'r': writable = 0; break;
    }
    return ESPANK_SUCCESS;
}

struct spank_option spank_options[] = {
    {"container-image", "PATH", "[stand-in for pyxis] squashfs file", 1, 'i', take},
    {"container-mounts", "SRC:DST[:FLAGS],...", "[stand-in for pyxis] bind mounts", 1, 'm', take},
    {"container-workdir", "PATH", "[stand-in for pyxis] working directory", 1, 'w', take},
    {"no-container-mount-home", NULL, "[stand-in for pyxis] no home", 0, 'h', take},
    {"no-container-remap-root", NULL, "[stand-in for pyxis] nobody is remapped anyway", 0, 'u', take},
    {"container-readonly", NULL, "[stand-in for pyxis] nothing but mounts is written to", 0, 'r', take},
    SPANK_OPTIONS_TABLE_END};

static int fail(const char *what)
{
    slurm_error("stand-in for pyxis: %s: %s", what, strerror(errno));
    return -1; /* a positive value is no failure to Slurm */
}

/* Make a folder and those above it. */
static int make_folders(const char *path)
{
    char part[4096];
    snprintf(part, sizeof part, "%s", path);
    for (char *at = part + 1; *at; at++)
        if (*at == '/') {
            *at = 0;
            if (mkdir(part, 0755) && errno != EEXIST)
                return -1;
            *at = '/';
        }
    return mkdir(part, 0755) && errno != EEXIST ? -1 : 0;
}

static int make_file(const char *path)
{
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", path);
    *strrchr(folder, '/') = 0;
    int file = make_folders(folder) ? -1 : open(path, O_CREAT | O_WRONLY, 0644);
    return file < 0 ? -1 : close(file);
}

static int bind_mount(const char *source, const char *target, const char *flags)
{
    char inside[4096];
    struct stat what;
    snprintf(inside, sizeof inside, ROOT "/root%s", target);
    if (stat(source, &what))
        return fail(source);
    if (S_ISDIR(what.st_mode) ? make_folders(inside) : make_file(inside))
        return fail(target);
    if (mount(source, inside, NULL, MS_BIND | MS_REC, NULL))
        return fail(source);
    for (char *rest = strdup(flags), *flag; (flag = strsep(&rest, "+"));)
        if (!strcmp(flag, "ro") && mount(NULL, inside, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL))
            return fail(target);
    return ESPANK_SUCCESS;
}

static int mount_root(void)
{
    const char *parts[] = {ROOT "/image", ROOT "/upper", ROOT "/work", ROOT "/root"};
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("tmpfs", ROOT, "tmpfs", 0, NULL))
        return fail("namespace");
    for (size_t part = 0; part < sizeof parts / sizeof *parts; part++)
        if (mkdir(parts[part], 0755))
            return fail(parts[part]);
    char command[4096];
    snprintf(command, sizeof command, "mount -t squashfs -o loop,ro '%s' " ROOT "/image", image);
    if (system(command))
        return fail(command);
    const char *layers = "lowerdir=" ROOT "/image,upperdir=" ROOT "/upper,workdir=" ROOT "/work";
    return mount("overlay", ROOT "/root", "overlay", 0, layers) ? fail("overlay") : ESPANK_SUCCESS;
}

/* Pyxis wants the folder that slurmd makes when it loads the plugin. Where it did not, no task is started on the node.
 * Here the folder is the argument of the plugin. */
int slurm_spank_init_post_opt(spank_t spank, int count, char **arguments)
{
    if (spank_remote(spank) == 1 && image != NULL && count == 1 && access(arguments[0], F_OK))
        return fail(arguments[0]);
    return ESPANK_SUCCESS;
}

int slurm_spank_task_init_privileged(spank_t spank, int count, char **arguments)
{
    (void)count, (void)arguments;
    char folder[4096];
    if (image == NULL)
        return ESPANK_SUCCESS;
    if (mount_root() || bind_mount("/proc", "/proc", "") || bind_mount("/sys", "/sys", "") ||
        bind_mount("/dev", "/dev", "") || bind_mount("/etc/hosts", "/etc/hosts", ""))
        return -1;
    if (home && spank_getenv(spank, "HOME", folder, sizeof folder) == ESPANK_SUCCESS && bind_mount(folder, folder, ""))
        return -1;
    for (char *rest = mounts ? strdup(mounts) : NULL, *one; (one = strsep(&rest, ","));) {
        char *source = strsep(&one, ":"), *target = strsep(&one, ":");
        if (bind_mount(source, target ? target : source, one ? one : ""))
            return -1;
    }
    if (!writable && mount(NULL, ROOT "/root", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL))
        return fail("read-only root");
    if (chroot(ROOT "/root") || chdir(workdir ? workdir : "/"))
        return fail(workdir ? workdir : "/");
    return ESPANK_SUCCESS;
}
