
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
    compadd -S '' -- ${(M)found:#*=}
    compadd -- ${found:#*=}
}

compdef _cosmos_hpc cosmos-hpc
