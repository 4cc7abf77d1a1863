package com.cloudbees.plugins.credentials.impl

import com.cloudbees.plugins.credentials.common.StandardUsernameCredentials

class UsernamePasswordCredentialsImpl implements StandardUsernameCredentials {
    final String id
    final String username
    final Map descriptor = [displayName: 'Username with password']

    UsernamePasswordCredentialsImpl(String id, String username) {
        this.id = id
        this.username = username
    }
}
