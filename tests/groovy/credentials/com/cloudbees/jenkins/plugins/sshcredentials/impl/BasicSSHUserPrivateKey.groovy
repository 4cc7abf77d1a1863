package com.cloudbees.jenkins.plugins.sshcredentials.impl

import com.cloudbees.plugins.credentials.common.StandardUsernameCredentials

class BasicSSHUserPrivateKey implements StandardUsernameCredentials {
    final String id
    final String username
    final Map descriptor = [displayName: 'SSH Username with private key']

    BasicSSHUserPrivateKey(String id, String username) {
        this.id = id
        this.username = username
    }
}
