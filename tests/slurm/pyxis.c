/*
 * Stands in for pyxis in the tests' cluster, where there are no containers: takes the options of the
 * version that plugstack.conf names, writes down what it was given, and runs the command on the host,
 * in the folder that --container-workdir names.
 *
 * Arguments in plugstack.conf: version=MINOR (of 0.MINOR) and record=FILE, to which every job step
 * with options adds a line on each of its nodes:
 *     {"job": 7, "step": 0, "node": "n1", "options": [["container-image", "a.sqsh"], ...]}
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(pyxis, 1);

#define MOST_OPTIONS 64
#define MOST_BYTES 65536

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

int slurm_spank_init_post_opt(spank_t sp, int ac, char **av)
{
    static char line[MOST_BYTES];
    char node[256] = "";
    uint32_t job = 0, step = 0;
    size_t used;
    int file;

    if (spank_context() != S_CTX_REMOTE || count == 0)
        return 0;
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
