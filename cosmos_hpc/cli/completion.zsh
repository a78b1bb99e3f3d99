
_cosmos_hpc() {
    local -a args found
    args=(${words[2,CURRENT-1]:#-*})
    if [[ $PREFIX == *=* ]]; then
        found=(${(f)"$(_cosmos_hpc_values "$PREFIX")"})
    else
        found=(${(f)"$(_cosmos_hpc_candidates "${args[1]}" "${args[2]}")"})
    fi
    if (( ! $#found )); then
        compset -P '*='
        _files
        return
    fi
    local added=1
    compadd -S '' -- ${(M)found:#*=} && added=0
    compadd -- ${found:#*=} && added=0
    return added
}

compdef _cosmos_hpc cosmos-hpc
