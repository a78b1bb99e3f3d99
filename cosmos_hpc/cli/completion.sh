# Completes cosmos-hpc, without starting it. For bash, in ~/.bashrc:
#   source <(cosmos-hpc completion bash)
# For zsh, in ~/.zshrc behind compinit:
#   source <(cosmos-hpc completion zsh)

# What may follow the words before the cursor, one a line.
_cosmos_hpc_candidates() {
    [ -z "${ZSH_VERSION-}" ] || emulate -L sh
    case "$1 $2" in
@CASES@
    esac
}

_cosmos_hpc_words() {
    printf '%s\n' "$@"
}

_cosmos_hpc_runs() {
    local file
    for file in runs/*/run.json; do
        [ -e "$file" ] && file=${file#runs/} && printf '%s\n' "${file%/run.json}"
    done
}

# Recipes, behind a prefix.
_cosmos_hpc_recipes() {
    local name
    for name in @RECIPES@ *.yaml; do
        [ "$name" = '*.yaml' ] || printf '%s\n' "$1$name"
    done
}

# Profiles of clusters, behind a prefix.
_cosmos_hpc_clusters() {
    local file
    printf '%s\n' "$1local"
    for file in clusters/*.yaml "${XDG_CONFIG_HOME:-$HOME/.config}"/cosmos-hpc/clusters/*.yaml; do
        [ -e "$file" ] && file=${file##*/} && printf '%s\n' "$1${file%.yaml}"
    done
}

_cosmos_hpc_settings() {
    _cosmos_hpc_words recipe= cluster= @SETTINGS@
}

# What may follow a word that ends in "=" or has something behind it.
_cosmos_hpc_values() {
    [ -z "${ZSH_VERSION-}" ] || emulate -L sh
    case "$1" in
        recipe=*) _cosmos_hpc_recipes recipe= ;;
        cluster=*) _cosmos_hpc_clusters cluster= ;;
    esac
}
