/*
 * Stands in for pyxis in the tests' cluster, where there are no images: takes the options of the
 * version that plugstack.conf names, writes down what it was given, and runs the command in the
 * folder that --container-workdir names, with a root of its own that has the host's folders and those
 * mounts whose targets stand beside them.
 *
 * As with pyxis, a container has a folder while its step runs, named by job and step, and none is
 * started where there is one of that name: a killed slurmstepd leaves it behind.
 *
 * Arguments in plugstack.conf: version=MINOR (of 0.MINOR); containers=FOLDER, which has a folder for
 * each node; and record=FILE, to which every job step with options adds a line on each of its nodes:
 *     {"job": 7, "step": 0, "node": "n1", "options": [["container-image", "a.sqsh"], ...]}
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(pyxis, 1);

#define MOST_OPTIONS 64
#define MOST_BYTES 65536
#define MOST_PATH 4096

/* The options, whether they have a value, and since which minor version they are there; 0: always. */
static const struct {
    const char *name;
    int value;
    int since;
} known[] = {
    {"container-image", 1, 0},
    {"container-mounts", 1, 0},
    {"container-workdir", 1, 0},
    {"container-name", 1, 0},
    {"container-save", 1, 0},
    {"container-mount-home", 0, 0},
    {"no-container-mount-home", 0, 0},
    {"container-remap-root", 0, 0},
    {"no-container-remap-root", 0, 0},
    {"container-entrypoint", 0, 0},
    {"no-container-entrypoint", 0, 0},
    {"container-writable", 0, 11},
    {"container-readonly", 0, 11},
    {"container-env", 1, 15},
};
/* sbatch and salloc know the options since then. */
static const int allocator_since = 12;

static struct {
    int option;
    char *value;
} given[MOST_OPTIONS];
static int count;

static int take(int option, const char *value, int remote)
{
    (void)remote;
    if (known[option].value && (value == NULL || *value == '\0')) {
        slurm_error("pyxis: --%s: argument required", known[option].name);
        return -1;
    }
    for (int i = 0; i < count; i++)
        if (given[i].option == option) {
            const char *before = given[i].value ? given[i].value : "";
            if (strcmp(before, value ? value : "") == 0)
                return 0; /* Slurm calls twice. */
            slurm_error("pyxis: --%s specified multiple times", known[option].name);
            return -1;
        }
    if (count == MOST_OPTIONS)
        return -1;
    given[count].option = option;
    given[count].value = value ? strdup(value) : NULL;
    count++;
    return 0;
}

static const char *argument(int ac, char **av, const char *name)
{
    size_t length = strlen(name);
    for (int i = 0; i < ac; i++)
        if (strncmp(av[i], name, length) == 0 && av[i][length] == '=')
            return av[i] + length + 1;
    return NULL;
}

int slurm_spank_init(spank_t sp, int ac, char **av)
{
    spank_context_t context = spank_context();
    int version = atoi(argument(ac, av, "version"));

    if (context != S_CTX_LOCAL && context != S_CTX_REMOTE && context != S_CTX_ALLOCATOR)
        return 0;
    if (context == S_CTX_ALLOCATOR && version < allocator_since)
        return 0;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        struct spank_option option = {
            .name = (char *)known[i].name,
            .arginfo = known[i].value ? "VALUE" : NULL,
            .usage = "[pyxis] see its documentation",
            .has_arg = known[i].value,
            .val = (int)i,
            .cb = take,
        };
        if (known[i].since <= version && spank_option_register(sp, &option) != ESPANK_SUCCESS)
            return -1;
    }
    return 0;
}

static void add_text(char *line, size_t *used, const char *text)
{
    *used += (size_t)snprintf(line + *used, MOST_BYTES - *used, "\"");
    for (const char *c = text; *c != '\0' && *used < MOST_BYTES - 16; c++) {
        const char *form = (*c == '"' || *c == '\\') ? "\\%c"
                           : ((unsigned char)*c < ' ') ? "\\u%04x"
                                                       : "%c";
        *used += (size_t)snprintf(line + *used, MOST_BYTES - *used, form, *c);
    }
    *used += (size_t)snprintf(line + *used, MOST_BYTES - *used, "\"");
}

/* Where the container of this step is, on this node. */
static const char *container(spank_t sp, int ac, char **av)
{
    static char path[MOST_PATH];
    char node[256] = "";
    uint32_t job = 0, step = 0;

    spank_get_item(sp, S_JOB_ID, &job);
    spank_get_item(sp, S_JOB_STEPID, &step);
    gethostname(node, sizeof(node) - 1);
    snprintf(path, sizeof(path), "%s/%s", argument(ac, av, "containers"), node);
    mkdir(path, 0755);
    snprintf(path + strlen(path), sizeof(path) - strlen(path), "/pyxis_%u.%u", job, step);
    return path;
}

int slurm_spank_init_post_opt(spank_t sp, int ac, char **av)
{
    static char line[MOST_BYTES];
    char node[256] = "";
    uint32_t job = 0, step = 0;
    size_t used;
    int file;

    if (spank_context() != S_CTX_REMOTE || count == 0)
        return 0;
    if (mkdir(container(sp, ac, av), 0755) != 0) {
        slurm_error("pyxis: [ERROR] %s: %s", strerror(errno), container(sp, ac, av));
        return -1;
    }
    spank_get_item(sp, S_JOB_ID, &job);
    spank_get_item(sp, S_JOB_STEPID, &step);
    gethostname(node, sizeof(node) - 1);
    used = (size_t)snprintf(
        line, sizeof(line), "{\"job\": %u, \"step\": %u, \"node\": \"%s\", \"options\": [", job,
        step, node);
    for (int i = 0; i < count; i++) {
        used += (size_t)snprintf(
            line + used, sizeof(line) - used, "%s[\"%s\", ", i ? ", " : "",
            known[given[i].option].name);
        if (given[i].value)
            add_text(line, &used, given[i].value);
        else
            used += (size_t)snprintf(line + used, sizeof(line) - used, "null");
        used += (size_t)snprintf(line + used, sizeof(line) - used, "]");
    }
    used += (size_t)snprintf(line + used, sizeof(line) - used, "]}\n");
    /* One write at the end of the file: lines of several nodes do not mix. */
    file = open(argument(ac, av, "record"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0 || write(file, line, used) != (ssize_t)used) {
        slurm_error("pyxis: could not write down the options");
        return -1;
    }
    close(file);
    return 0;
}

int slurm_spank_exit(spank_t sp, int ac, char **av)
{
    if (spank_context() == S_CTX_REMOTE && count > 0)
        rmdir(container(sp, ac, av));
    return 0;
}

static int mount_at(const char *source, const char *root, const char *name)
{
    char target[MOST_PATH], link[MOST_PATH];
    struct stat found;
    ssize_t length = readlink(source, link, sizeof(link) - 1);

    snprintf(target, sizeof(target), "%s/%s", root, name);
    if (length > 0) {
        link[length] = '\0';
        return symlink(link, target);
    }
    if (stat(source, &found) != 0)
        return -1;
    if (S_ISDIR(found.st_mode))
        mkdir(target, 0755);
    else
        close(open(target, O_CREAT, 0644));
    return mount(source, target, NULL, MS_BIND | MS_REC, NULL);
}

/* The mounts, as "/from:/to,...", whose targets are names in the root that the host has not. */
static int mount_all(char *mounts, const char *root)
{
    char *rest = NULL;

    for (char *one = strtok_r(mounts, ",", &rest); one; one = strtok_r(NULL, ",", &rest)) {
        char *target = strchr(one, ':'), *options;
        *target++ = '\0';
        if ((options = strchr(target, ':')) != NULL)
            *options = '\0';
        if (strchr(target + 1, '/') == NULL && access(target, F_OK) != 0
            && mount_at(one, root, target + 1) != 0)
            return -1;
    }
    return 0;
}

int slurm_spank_task_init_privileged(spank_t sp, int ac, char **av)
{
    const char *root = container(sp, ac, av);
    DIR *host;

    if (count == 0)
        return 0;
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) != 0
        || mount("root", root, "tmpfs", 0, "mode=0755") != 0 || (host = opendir("/")) == NULL)
        goto failed;
    for (struct dirent *entry; (entry = readdir(host)) != NULL;) {
        char source[512];
        snprintf(source, sizeof(source), "/%s", entry->d_name);
        if (entry->d_name[0] != '.')
            mount_at(source, root, entry->d_name);
    }
    closedir(host);
    for (int i = 0; i < count; i++)
        if (strcmp(known[given[i].option].name, "container-mounts") == 0) {
            char *mounts = strdup(given[i].value);
            int rc = mount_all(mounts, root);
            free(mounts);
            if (rc != 0)
                goto failed;
        }
    if (chroot(root) == 0 && chdir("/") == 0)
        return 0;
failed:
    slurm_error("pyxis: container start failed: %s", strerror(errno));
    return -1;
}

int slurm_spank_task_init(spank_t sp, int ac, char **av)
{
    (void)sp, (void)ac, (void)av;
    for (int i = 0; i < count; i++)
        if (strcmp(known[given[i].option].name, "container-workdir") == 0
            && chdir(given[i].value) != 0) {
            slurm_error("pyxis: couldn't chdir to %s", given[i].value);
            return -1;
        }
    return 0;
}
