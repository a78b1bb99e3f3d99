
_cosmos_hpc() {
    # COMP_WORDS is cut at "=" as well: the line has whole words.
    local line=${COMP_LINE:0:COMP_POINT}
    local cur=${line##*[[:space:]]}
    local before word found args=()
    read -r -a before <<<"${line%"$cur"}"
    for word in "${before[@]:1}"; do
        [[ $word == -* ]] || args+=("$word")
    done
    if [[ $cur == *=* ]]; then
        found=$(_cosmos_hpc_values "$cur")
    else
        found=$(_cosmos_hpc_candidates "${args[0]}" "${args[1]}")
    fi
    COMPREPLY=()
    while IFS= read -r word; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$word")
    done <<<"$found"
    if [[ -z $found ]]; then
        # Quoted as they have to be, folders with a slash.
        compopt -o filenames 2>/dev/null
        while IFS= read -r word; do
            COMPREPLY+=("${cur%"${cur#*=}"}$word")
        done < <(compgen -f -- "${cur#*=}")
    fi
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
    # Readline replaces only what stands behind "=".
    if [[ $cur == *=* && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${cur%%=*}="}")
    fi
}

complete -F _cosmos_hpc cosmos-hpc
